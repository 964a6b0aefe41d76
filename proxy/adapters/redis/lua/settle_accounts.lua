-- The terms: keys, what was reserved, what was spent, then minute and epoch of each account. What the ledger has taken over
-- is the ledger's; what was reserved of an account that was there before this one is not held here.
local _, reserved, spent = unpack_from('<ddd', terms)
for i, key in ipairs(account_keys) do
  local minute, epoch = unpack_from('<dd', terms, 9 + 16 * i)
  local held = redis.call('HMGET', key, 'boundary', 'total', 'epoch', whole(minute))
  if held[1] and minute >= tonumber(held[1]) then
    local added = tonumber(held[3]) == epoch and spent - reserved or spent
    redis.call('HSET', key, 'total', whole(held[2] + added), whole(minute), whole((held[4] or 0) + added))
  end
end
