-- ARGV[1]: requests and tokens reserved, requests and tokens used, then the lease. ARGV[2..]: schedule and handle of each
-- scope. KEYS after those of the scopes: places, to be given back. Answers now_ms. The caller runs it once for a
-- reservation.
local scopes = #ARGV - 1
local reserved = { 0, 0 }
local actual = { 0, 0 }
reserved[1], reserved[2], actual[1], actual[2] = unpack_from('<dddd', ARGV[1])
local held = held_of(KEYS, scopes)
for i = 1, scopes do
  local level, schedule = level_of(held[i]), { unpack_from(SCHEDULE, ARGV[i + 1]) }
  local handle = { unpack_from('<ddddd', ARGV[i + 1], 73) }
  local phase = advance(level, schedule, now)
  for which = 0, 1 do
    local used, removed = USED + which * 2, REMOVED + which * 2
    local unused = (reserved[which + 1] - actual[which + 1]) * UNITS
    local level_after = handle[3 + which * 2]
    if level_after ~= NOT_CHARGED and unused < 0 then
      level[used] = level[used] + min(-unused, max(0, MOST_USED - level[used]))
    elseif level_after ~= NOT_CHARGED and level[EPOCH] == handle[1] then
      local still_there = level_after - (level[removed] - handle[2 + which * 2])
      local back = max(0, min(unused, still_there, level[used]))
      level[used], level[removed] = level[used] - back, level[removed] + back
    end
  end
  renew(level)
  keep(KEYS[i], level, resets(level, schedule, phase))
end
for i = scopes + 1, #KEYS do
  redis.call('ZREM', KEYS[i], string.sub(ARGV[1], 33))
end
return now
