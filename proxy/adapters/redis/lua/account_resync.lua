-- KEYS: an account.
-- ARGV: boundary, base. Takes the ledger's word of all minutes before a boundary, unless one further on was taken already.
-- Does not keep the account for longer. Answers its epoch and its total, or nothing where there is none.
local held = redis.call('HMGET', KEYS[1], 'base', 'boundary', 'total', 'epoch')
if not held[2] then
  return {}
end
local boundary, total = tonumber(ARGV[1]), tonumber(held[3])
if boundary >= tonumber(held[2]) then
  total = total - held[1] + ARGV[2]
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    local minute = tonumber(fields[i])
    if minute and minute < boundary then
      total = total - fields[i + 1]
      redis.call('HDEL', KEYS[1], fields[i])
    end
  end
  redis.call('HSET', KEYS[1], 'base', ARGV[2], 'boundary', ARGV[1], 'total', format('%.0f', total))
end
return { tonumber(held[4]), total }
