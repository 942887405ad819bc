-- Heads as the store has them, tokens not below the store's. Keys: heads, tokens, store, news, then of each branch its
-- stream of jobs, its lease and its attempts.
local heads, tokens, store, news = unpack(KEYS)
local id, kept_s, kept, made_up = ARGV[1], ARGV[2], {}, {}
local owner = redis.call('GET', store)
if owner and owner ~= id then return {'other', owner} end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i = 5, #KEYS, 3 do
  local jobs, lease, attempts = KEYS[i], KEYS[i + 1], KEYS[i + 2]
  local branch, head, token = ARGV[i - 2], ARGV[i - 1], ARGV[i]
  local newest = tonumber(redis.call('HGET', tokens, branch) or '0')
  kept[branch] = true
  if tonumber(token) > newest then
    if tonumber(token) <= now then redis.call('HSET', tokens, branch, token) else made_up[#made_up + 1] = branch end
  end
  local before = tonumber(redis.call('HGET', heads, branch) or head)
  redis.call('HSET', heads, branch, head)
  if tonumber(head) < before then
    -- The store has lost revisions. Jobs that were done and are gone must come before those that still wait, so the
    -- coordinator enqueues all of them anew, in order. Whoever has the lease made steps of a revision that is no more.
    redis.call('DEL', jobs, lease, attempts)
    redis.call('HSET', tokens, branch, string.format('%.0f', math.max(newest, now) + 1))
    redis.call('XADD', news, 'MAXLEN', '~', 1000, '*', 'fell', branch)
    redis.call('EXPIRE', news, kept_s)
  end
  for _, entry in ipairs(redis.call('XRANGE', jobs, '-', '+')) do
    local job = cjson.decode(entry[2][2])
    if tonumber(head) < job.first + job.steps then break end
    redis.call('XDEL', jobs, entry[1])
  end
end
-- A branch that is in no store may begin anew, from 0.
for _, branch in ipairs(redis.call('HKEYS', heads)) do
  if not kept[branch] then redis.call('HDEL', heads, branch) end
end
redis.call('SET', store, id)
return {owner and 'again' or 'anew', made_up}
