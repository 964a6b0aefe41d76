-- ARGV[1]: requests, tokens. ARGV[2..]: the schedule of each scope. Answers now_ms.
local cost = { unpack_from('<dd', ARGV[1]) }
local held = held_of(KEYS, #KEYS)
for i = 1, #KEYS do
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
