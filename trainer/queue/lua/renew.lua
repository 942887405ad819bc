-- All leases of a process, at once. Keys: tokens, store, then a lease each.
-- A lease that ran out is given back if nobody else was given the branch meanwhile.
local tokens, store = KEYS[1], KEYS[2]
local worker, lease_ms = ARGV[1], ARGV[2]
local kept = {}
if redis.call('EXISTS', store) == 0 then return {'unreconciled'} end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i = 3, #KEYS do
  local at = 3 + (i - 3) * 4
  local branch, nonce, token, job = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local newest = tonumber(redis.call('HGET', tokens, branch) or '0')
  -- A server that lost its last second may not know the token yet. One that is ahead of its clock it never gave.
  if tonumber(token) == newest or (tonumber(token) > newest and tonumber(token) <= now) then
    redis.call('HSET', tokens, branch, token)
    redis.call('HSET', KEYS[i], 'worker', worker, 'nonce', nonce, 'token', token, 'job', job, 'whole', lease_ms)
    redis.call('PEXPIRE', KEYS[i], lease_ms)
    kept[#kept + 1] = branch
  end
end
return kept
