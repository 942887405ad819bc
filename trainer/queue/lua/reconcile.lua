-- Heads as the store has them, tokens not below the store's. Keys: heads, tokens, store, then a stream of jobs each.
local heads, tokens, store = unpack(KEYS)
local id, kept = ARGV[1], {}
local owner = redis.call('GET', store)
if owner and owner ~= id then return {'other', owner} end
for i = 4, #KEYS do
  local at = 2 + (i - 4) * 3
  local branch, head, token = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  kept[branch] = true
  redis.call('HSET', heads, branch, head)
  if tonumber(token) > tonumber(redis.call('HGET', tokens, branch) or '0') then
    redis.call('HSET', tokens, branch, token)
  end
  for _, entry in ipairs(redis.call('XRANGE', KEYS[i], '-', '+')) do
    local job = cjson.decode(entry[2][2])
    if tonumber(head) < job.first + job.steps then break end
    redis.call('XDEL', KEYS[i], entry[1])
  end
end
-- A branch that is in no store may begin anew, from 0.
for _, branch in ipairs(redis.call('HKEYS', heads)) do
  if not kept[branch] then redis.call('HDEL', heads, branch) end
end
redis.call('SET', store, id)
if owner then return {'again'} else return {'anew'} end
