-- Asks the budgets, then the buckets, and takes of all or of none. Of each account two keys, its hash and the mark that
-- somebody was told of its warning. The terms: keys, what is reserved, its minute, how many ms an account is kept, then of
-- each account its limit and its warning (inf: none) and until when the mark is kept.
-- Answers as `decide` does, and for an admission goes on with minute, epoch, total and whether the warning is reached of
-- each account; or OVER_BUDGET, standing, index, total; or ABSENT and the indexes of accounts that are to be made first.
local OVER_BUDGET, ABSENT = 3, 4
local _, amount, minute, kept_ms = unpack_from('<dddd', terms)
local accounts, absent = {}, {}
for i = 1, #account_keys / 2 do
  local held = redis.call('HMGET', account_keys[2 * i - 1], 'boundary', 'total', 'epoch', 'warned', whole(minute))
  accounts[i] = held
  if not held[1] then
    absent[#absent + 1] = i - 1
  end
end
if #absent > 0 then
  return { now, ABSENT, unpack(absent) }
end
for i, held in ipairs(accounts) do
  if tonumber(held[2]) + amount > unpack_from('<d', terms, 9 + 24 * i) then
    local level, schedule = level_of(held_of(KEYS, 1)[1]), { unpack_from(SCHEDULE, ARGV[2]) }
    local phase = advance(level, schedule, now)
    local answer = { now, OVER_BUDGET, stand(level, schedule, phase, resets(level, schedule, phase)) }
    answer[9], answer[10] = i - 1, tonumber(held[2])
    return answer
  end
end

local answer = decide()
if answer[2] ~= 0 then
  return answer
end
for i, held in ipairs(accounts) do
  local key, boundary, total = account_keys[2 * i - 1], tonumber(held[1]), tonumber(held[2]) + amount
  local at, before, reached = minute, held[5], 0
  if at < boundary then
    at, before = boundary, redis.call('HGET', key, held[1])
  end
  redis.call('HSET', key, 'total', whole(total), whole(at), whole((before or 0) + amount))
  redis.call('PEXPIRE', key, kept_ms)
  local _, warning, told_until_ms = unpack_from('<ddd', terms, 9 + 24 * i)
  if total >= warning and held[4] ~= whole(warning) then
    redis.call('HSET', key, 'warned', whole(warning))
    -- The mark outlives the account.
    reached = redis.call('SET', account_keys[2 * i], '', 'NX', 'PXAT', whole(told_until_ms)) and 1 or 0
  end
  local size = #answer
  answer[size + 1], answer[size + 2], answer[size + 3], answer[size + 4] = at, tonumber(held[3]), total, reached
end
return answer
