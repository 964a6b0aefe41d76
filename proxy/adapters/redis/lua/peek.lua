-- ARGV: the schedule of each scope. Answers now_ms and six numbers for each scope; writes nothing.
local held = held_of(KEYS, #KEYS)
local answer = { now }
for i = 1, #KEYS do
  local level, schedule = level_of(held[i]), { unpack_from(SCHEDULE, ARGV[i]) }
  local phase = advance(level, schedule, now)
  for place, number in ipairs({ stand(level, schedule, phase, resets(level, schedule, phase)) }) do
    answer[i * 6 - 5 + place] = number
  end
end
return answer
