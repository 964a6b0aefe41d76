-- KEYS: an account.
-- ARGV: base, boundary, how many ms it is kept, then minutes and amounts in turn. Makes it unless it is there.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local total = tonumber(ARGV[1])
for i = 4, #ARGV, 2 do
  total = total + ARGV[i + 1]
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('HSET', KEYS[1], 'base', ARGV[1], 'boundary', ARGV[2], 'epoch', format('%.0f', new_epoch))
redis.call('HSET', KEYS[1], 'total', format('%.0f', total))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
