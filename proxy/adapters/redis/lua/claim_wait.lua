-- KEYS: lease, mark. ARGV: life of a lease in ms. Answers how many ms the lease has left and its token, or 0 when nobody
-- holds it; asks the holder to say when it ends.
local left_ms = redis.call('PTTL', KEYS[1])
if left_ms == -2 then
  return { 0, '' }
end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
if left_ms == -1 then
  left_ms = tonumber(ARGV[1])
end
return { math.max(left_ms, 1), redis.call('GET', KEYS[1]) }
