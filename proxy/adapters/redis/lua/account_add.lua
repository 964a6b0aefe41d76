-- KEYS: an account, and what stands for this having been added: it is not a second time.
-- ARGV: epoch, then minutes and amounts in turn. Adds what was spent while the account could not be asked, unless it was
-- made anew since: then the ledger told of it, or will.
local ADDED_MS = 600000
local held = redis.call('HMGET', KEYS[1], 'boundary', 'total', 'epoch')
if held[3] ~= ARGV[1] or not redis.call('SET', KEYS[2], '', 'NX', 'PX', ADDED_MS) then
  return 0
end
local total = tonumber(held[2])
for i = 2, #ARGV, 2 do
  if tonumber(ARGV[i]) >= tonumber(held[1]) then
    total = total + ARGV[i + 1]
    redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('HSET', KEYS[1], 'total', format('%.0f', total))
return 1
