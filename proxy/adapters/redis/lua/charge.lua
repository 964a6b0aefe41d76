-- ARGV[1]: requests, tokens. ARGV[2..]: the schedule of each scope. A key after those of the scopes stands for the charge,
-- and is there once it was carried out: it is not a second time. Answers now_ms.
local CHARGED_MS = 600000
local scopes = #ARGV - 1
local cost = { unpack_from('<dd', ARGV[1]) }
if #KEYS > scopes and not redis.call('SET', KEYS[scopes + 1], '', 'NX', 'PX', CHARGED_MS) then
  return now
end
local held = held_of(KEYS, scopes)
for i = 1, scopes do
  local level, schedule = level_of(held[i]), { unpack_from(SCHEDULE, ARGV[i + 1]) }
  local phase = advance(level, schedule, now)
  for which = 0, 1 do
    if schedule[phase + which * 2] > 0 then
      local used = USED + which * 2
      level[used] = level[used] + min(cost[which + 1] * UNITS, max(0, MOST_USED - level[used]))
    end
  end
  renew(level)
  keep(KEYS[i], level, resets(level, schedule, phase))
end
return now
