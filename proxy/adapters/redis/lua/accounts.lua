-- Accounts of budgets, in front of a verb of buckets that is to decide or settle them as well, in the same step.
--
-- ARGV: the terms of the accounts come last, packed doubles. KEYS: the accounts' come last, as many as the terms say.
-- An account is a hash: base, boundary, total (the base and all minutes), epoch (the microsecond in which it was made),
-- warned (the warning that somebody was told of last), and an amount for each minute of the tail, see core/budget.py.
-- Amounts are integers below 2^53.
local terms = ARGV[#ARGV]
local account_keys = {}
for i = #KEYS - unpack_from('<d', terms) + 1, #KEYS do
  account_keys[#account_keys + 1] = KEYS[i]
end
local KEYS, ARGV = { unpack(KEYS, 1, #KEYS - #account_keys) }, { unpack(ARGV, 1, #ARGV - 1) }

local function whole(number)
  return format('%.0f', number)
end
