-- KEYS: lease, mark, entry. ARGV: token, channel, digest, what to keep, its life in ms.
-- Keeps it if the lease is still the token's, gives the lease back and tells who waits. Answers whether it was.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
-- First, because it is what a server without memory refuses: then nothing is done.
redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[5])
redis.call('DEL', KEYS[1])
if redis.call('DEL', KEYS[2]) == 1 then
  redis.call('PUBLISH', ARGV[2], ARGV[3])
end
return 1
