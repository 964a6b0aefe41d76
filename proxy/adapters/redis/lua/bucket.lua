-- The arithmetic of proxy/core/bucket.py, in front of each verb. Same names, same order, same answers.
--
-- Numbers are doubles that hold integers below 2^53. Quotients are rounded, and floor and ceil of them are exact all
-- the same: a / b is at least 1 / b away from the nearest integer or is one, and rounds by less than that while
-- a < 2^53. A product too large to be exact is only ever compared with a bound far below it.
--
-- KEYS: one bucket each, then what the verb says, all in one slot. ARGV: packed doubles, see bucket_state.py. A state is
-- one string:
-- epoch, last_ms, used and removed units of requests, used and removed units of tokens. A schedule is
-- switch_at_ms (inf: never), then rate and capacity of requests and of tokens, before the switch and after it.
--
-- An epoch is the microsecond in which a bucket was made, or its counts began anew. No two lives of one bucket share
-- it: between two makings lie at least the rest of the first script, what took the bucket away (its expiry, FLUSHALL,
-- a refund that filled it), and the start of the second, which is more than a microsecond. A counter would begin at 1
-- again after FLUSHALL or a failover that lost it; the time does not. Where a clock was set back, or the next
-- primary's is behind, two lives share an epoch only if they began in the very same microsecond of the clock's
-- two passes, with a reservation of the first still open; what that can hand out is bounded by that reservation.
local UNITS = 60000
local STEP_BACK_MS = 2000
local EPOCH_SPAN = 2 ^ 51
local MOST_USED = 2 ^ 52
local NEVER = 2 ^ 53
local NOT_CHARGED = -1
local LEASE_MS = 60000
local STATE = '<dddddd'
local SCHEDULE = '<ddddddddd'

local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local pack, unpack_from, format = struct.pack, struct.unpack, string.format

local time = redis.call('TIME')
local now = time[1] * 1000 + floor(time[2] / 1000)
local new_epoch = time[1] * 1000000 + time[2]

-- Places in a level, a state on its way, and in a schedule. Dimensions are 0 (requests) and 1 (tokens); `which * 2`
-- leads from the one to the other, and `BEFORE` or `AFTER` to the figures of a phase.
local EPOCH, AT, USED, REMOVED = 1, 2, 3, 4
local SWITCH, BEFORE, AFTER = 1, 2, 6

local function held_of(keys, scopes)
  if scopes == 1 then
    return { redis.call('GET', keys[1]) }
  end
  return redis.call('MGET', unpack(keys, 1, scopes))
end

local function level_of(packed)
  if packed then
    return { unpack_from(STATE, packed) }
  end
  return { new_epoch, now, 0, 0, 0, 0 }
end

local function refill(level, until_ms, rate_r, rate_t)
  local elapsed_ms = until_ms - level[AT]
  if elapsed_ms == 0 then
    return
  end
  level[AT] = until_ms
  local used_r, used_t = level[USED], level[USED + 2]
  local back_r, back_t = elapsed_ms * rate_r, elapsed_ms * rate_t
  if back_r > used_r then
    back_r = used_r
  end
  if back_t > used_t then
    back_t = used_t
  end
  level[USED], level[REMOVED] = used_r - back_r, level[REMOVED] + back_r
  level[USED + 2], level[REMOVED + 2] = used_t - back_t, level[REMOVED + 2] + back_t
end

-- Brings a level to `at_ms`; returns the phase that holds there.
local function advance(level, schedule, at_ms)
  local last_ms, switch_ms = level[AT], schedule[SWITCH]
  if at_ms <= last_ms then
    if last_ms - at_ms < STEP_BACK_MS then
      at_ms = last_ms
    else
      level[AT] = at_ms
    end
  elseif last_ms < switch_ms and switch_ms <= at_ms then
    refill(level, switch_ms, schedule[BEFORE], schedule[BEFORE + 2])
  end
  local phase = at_ms < switch_ms and BEFORE or AFTER
  refill(level, at_ms, schedule[phase], schedule[phase + 2])
  return phase
end

local function wait_for(used, cost, rate, capacity, round)
  if rate == 0 or cost == 0 then
    return 0
  end
  cost = cost or capacity
  if cost > capacity then
    return NEVER
  end
  return max(0, round((used + cost - capacity) / rate))
end

-- From `at_ms` until a dimension has room for `cost` units, or until it is full for nil; `round` is ceil for what has to
-- be over then, floor for what is told of a reset.
local function wait_across(used, cost, schedule, which, at_ms, round)
  local until_switch_ms, place = 0, AFTER + which * 2
  if at_ms < schedule[SWITCH] then
    local before = BEFORE + which * 2
    local wait_ms = wait_for(used, cost, schedule[before], schedule[before + 1], round)
    until_switch_ms = schedule[SWITCH] - at_ms
    if wait_ms < until_switch_ms then
      return wait_ms
    end
    used = max(0, used - until_switch_ms * schedule[before])
  end
  return until_switch_ms + wait_for(used, cost, schedule[place], schedule[place + 1], round)
end

-- From the level's own time until all of it is full, and what is told of each dimension, cut to whole milliseconds.
local function resets(level, schedule, phase)
  local at_ms, used_r, used_t = level[AT], level[USED], level[USED + 2]
  local rate_r, rate_t = schedule[phase], schedule[phase + 2]
  local full_r = rate_r > 0 and used_r / rate_r or 0
  local full_t = rate_t > 0 and used_t / rate_t or 0
  local full = full_r > full_t and full_r or full_t
  if at_ms < schedule[SWITCH] and schedule[SWITCH] <= at_ms + full then
    return max(wait_across(used_r, nil, schedule, 0, at_ms, ceil), wait_across(used_t, nil, schedule, 1, at_ms, ceil)),
      wait_across(used_r, nil, schedule, 0, at_ms, floor),
      wait_across(used_t, nil, schedule, 1, at_ms, floor)
  end
  return ceil(full), floor(full_r), floor(full_t)
end

-- The six numbers of a standing; the rest of its arguments are what `resets` returned.
local function stand(level, schedule, phase, full_ms, reset_r, reset_t)
  local ahead_ms = level[AT] - now
  if ahead_ms > 0 and full_ms > 0 then
    reset_r = schedule[phase] > 0 and level[USED] > 0 and reset_r + ahead_ms or 0
    reset_t = schedule[phase + 2] > 0 and level[USED + 2] > 0 and reset_t + ahead_ms or 0
  end
  local left_r = floor((schedule[phase + 1] - level[USED]) / UNITS)
  local left_t = floor((schedule[phase + 3] - level[USED + 2]) / UNITS)
  return schedule[phase],
    left_r > 0 and left_r or 0,
    reset_r,
    schedule[phase + 2],
    left_t > 0 and left_t or 0,
    reset_t
end

-- An absent bucket is a full one, so a bucket lives until it is full.
local function keep(key, level, full_ms)
  if full_ms > 0 then
    local state = pack(STATE, level[1], level[2], level[3], level[4], level[5], level[6])
    redis.call('SET', key, state, 'PXAT', format('%.0f', level[AT] + full_ms))
  else
    redis.call('DEL', key)
  end
end

local function renew(level)
  if level[REMOVED] > EPOCH_SPAN or level[REMOVED + 2] > EPOCH_SPAN then
    level[EPOCH], level[REMOVED], level[REMOVED + 2] = new_epoch, 0, 0
  end
end
