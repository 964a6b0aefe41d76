-- KEYS[1]: sorted set of workers by when they were last heard of. ARGV: worker, milliseconds after which one is gone.
-- Returns every worker that is alive, in the order of their names.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now_ms, ARGV[1])
-- Of a clock that was set back: one that is gone would count for as long as it was set back.
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now_ms), '+inf')) do
  redis.call('ZADD', KEYS[1], now_ms, worker)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', now_ms - ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local alive = redis.call('ZRANGE', KEYS[1], 0, -1)
table.sort(alive)
return alive
