-- ARGV: leases that are held in the places KEYS[1]. Answers now_ms. One that had expired, or was lost with the server's
-- memory, is held again: its request is still under way.
local expires_ms = format('%.0f', now + LEASE_MS)
for i = 1, #ARGV do
  redis.call('ZADD', KEYS[1], expires_ms, ARGV[i])
end
redis.call('PEXPIREAT', KEYS[1], expires_ms)
return now
