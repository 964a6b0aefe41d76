-- KEYS: lease, mark. ARGV: token, life in ms. Answers whether the lease is still the token's, and then holds it anew.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
