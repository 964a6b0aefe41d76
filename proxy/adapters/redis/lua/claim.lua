-- KEYS: the lease on an address, the mark that somebody waits for it. ARGV: token, its life in ms.
-- Answers 1: the lease is the token's; 0: another holds it, and is asked to say when it ends.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return 1
end
-- A lease without an end, or with one far off, is none of ours: it shall not keep an address for ever.
local left_ms = redis.call('PTTL', KEYS[1])
if left_ms < 0 or left_ms > tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
return 0
