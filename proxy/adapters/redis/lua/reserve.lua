-- ARGV[1]: requests, tokens, then of each set of places its scope and how many there are, then the lease. ARGV[2..]: the
-- schedule of each scope. KEYS after those of the scopes: places, sorted sets of leases by when they expire.
-- Answers now_ms, then what `proxy.core.decision.decision` reads.
local ADMITTED, REFUSED, NEVER_FITS = 0, 1, 2
local PARALLEL, PARALLEL_WAIT_MS = 2, 1000
local scopes = #ARGV - 1
local cost_r, cost_t = unpack_from('<dd', ARGV[1])
local units_r, units_t = cost_r * UNITS, cost_t * UNITS
local held = held_of(KEYS, scopes)
local levels, schedules, phases = {}, {}, {}
local fits = true
for i = 1, scopes do
  local level, schedule = level_of(held[i]), { unpack_from(SCHEDULE, ARGV[i + 1]) }
  local phase = advance(level, schedule, now)
  levels[i], schedules[i], phases[i] = level, schedule, phase
  if
    (schedule[phase] > 0 and units_r > 0 and level[USED] + units_r > schedule[phase + 1])
    or (schedule[phase + 2] > 0 and units_t > 0 and level[USED + 2] + units_t > schedule[phase + 3])
  then
    fits = false
  end
end

-- Places are asked for last, and all of them before one is taken. Their key lives as long as its last lease.
local lacking, most, taken
if fits and #KEYS > scopes then
  for i = scopes + 1, #KEYS do
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', format('%.0f', now))
    local scope, places = unpack_from('<dd', ARGV[1], (i - scopes) * 16 + 1)
    taken = redis.call('ZCARD', KEYS[i])
    if taken >= places then
      fits, lacking, most = false, scope, places
      -- Of a clock that was set back: a holder that is gone would keep its place for as long as it was set back.
      for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[i], format('(%.0f', now + LEASE_MS), '+inf')) do
        redis.call('ZADD', KEYS[i], format('%.0f', now + LEASE_MS), lease)
      end
      break
    end
  end
  if fits then
    local lease, expires_ms = string.sub(ARGV[1], (#KEYS - scopes) * 16 + 17), format('%.0f', now + LEASE_MS)
    for i = scopes + 1, #KEYS do
      redis.call('ZADD', KEYS[i], expires_ms, lease)
      redis.call('PEXPIREAT', KEYS[i], expires_ms)
    end
  end
end

-- Charges one dimension; returns what the handle says of it.
local function take(level, used, rate, units)
  if rate > 0 then
    level[used] = level[used] + units
    return level[used + 1], level[used]
  end
  level[used + 1], level[used] = level[used + 1] + level[used], 0
  return level[used + 1], NOT_CHARGED
end

if fits then
  local answer
  for i = 1, scopes do
    local level, schedule, phase = levels[i], schedules[i], phases[i]
    renew(level)
    local removed_r, level_r = take(level, USED, schedule[phase], units_r)
    local removed_t, level_t = take(level, USED + 2, schedule[phase + 2], units_t)
    local full_ms, reset_r, reset_t = resets(level, schedule, phase)
    keep(KEYS[i], level, full_ms)
    if i == 1 then
      local a, b, c, d, e, f = stand(level, schedule, phase, full_ms, reset_r, reset_t)
      answer = { now, ADMITTED, a, b, c, d, e, f, level[EPOCH], removed_r, level_r, removed_t, level_t }
    else
      local size = #answer
      answer[size + 1], answer[size + 2], answer[size + 3] = level[EPOCH], removed_r, level_r
      answer[size + 4], answer[size + 5] = removed_t, level_t
    end
  end
  return answer
end

-- Refused: nothing is stored but the time of a bucket whose clock was set back, or it would never refill.
for i = 1, scopes do
  if held[i] and levels[i][AT] < level_of(held[i])[AT] then
    keep(KEYS[i], levels[i], resets(levels[i], schedules[i], phases[i]))
  end
end

-- The longest wait of all scopes and dimensions from `at_ms`, and whose it is; the first of equals.
local function longest(at_levels, at_ms)
  local most_ms, binding, dimension = 0, 1, 0
  for i = 1, scopes do
    local level = at_levels[i]
    for which = 0, 1 do
      local units = which == 0 and units_r or units_t
      local wait_ms = wait_across(level[USED + which * 2], units, schedules[i], which, level[AT], ceil)
      if wait_ms > 0 then
        wait_ms = wait_ms + level[AT] - at_ms
      end
      if wait_ms > most_ms then
        most_ms, binding, dimension = wait_ms, i, which
      end
    end
  end
  return most_ms, binding, dimension
end

local function switches(until_ms)
  for i = 1, scopes do
    if now < schedules[i][SWITCH] and schedules[i][SWITCH] <= until_ms then
      return true
    end
  end
  return false
end

local answer =
  { now, REFUSED, stand(levels[1], schedules[1], phases[1], resets(levels[1], schedules[1], phases[1])) }
if lacking then
  answer[9], answer[10], answer[11], answer[12], answer[13] = PARALLEL_WAIT_MS, lacking, PARALLEL, most, taken
  return answer
end
for i = 1, scopes do
  for which = 0, 1 do
    local place = phases[i] + which * 2
    local rate, capacity = schedules[i][place], schedules[i][place + 1]
    if rate > 0 and (which == 0 and units_r or units_t) > capacity then
      answer[2], answer[9], answer[10], answer[11] = NEVER_FITS, i - 1, which, capacity / UNITS
      return answer
    end
  end
end

local wait_ms, binding, dimension = longest(levels, now)
local total_ms, last, last_dimension = wait_ms, binding, dimension
-- What has room until then may lose it on the way, where a switch lowers a limit.
while wait_ms > 0 and total_ms < NEVER and switches(now + total_ms) do
  local at_ms, later = now + total_ms, {}
  for i = 1, scopes do
    later[i] = { unpack(levels[i], 1, 6) }
    advance(later[i], schedules[i], at_ms)
  end
  wait_ms, last, last_dimension = longest(later, at_ms)
  total_ms = total_ms + wait_ms
end
if total_ms >= NEVER then
  local capacity = schedules[last][AFTER + last_dimension * 2 + 1]
  answer[2], answer[9], answer[10], answer[11] = NEVER_FITS, last - 1, last_dimension, floor(capacity / UNITS)
  return answer
end
local place = dimension * 2
answer[9], answer[10], answer[11] = total_ms, binding - 1, dimension
answer[12] = schedules[binding][phases[binding] + place]
answer[13] = ceil(levels[binding][USED + place] / UNITS)
return answer
