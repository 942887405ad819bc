-- A revision exists. It cannot be refused, and told again it changes nothing.
local jobs, lease, attempts, heads, tokens, dead, news = unpack(KEYS)
local branch, revision, token, kept_s = unpack(ARGV)
local head = tonumber(redis.call('HGET', heads, branch) or '-1')
if tonumber(revision) > head then
  head = tonumber(revision)
  redis.call('HSET', heads, branch, revision)
  if redis.call('EXISTS', lease) == 1 and redis.call('EXISTS', attempts) == 1 then -- its next step is a first attempt
    redis.call('HSET', attempts, 'count', 1)
    redis.call('HDEL', attempts, 'error')
  else
    redis.call('DEL', attempts)
  end
  redis.call('HDEL', dead, branch) -- its last worker was slow, not lost
  redis.call('XADD', news, 'MAXLEN', '~', 1000, '*', 'advanced', branch)
  redis.call('EXPIRE', news, kept_s)
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- A server that lost its last second may not know the token yet. One that is ahead of its clock it never gave.
if tonumber(token) > tonumber(redis.call('HGET', tokens, branch) or '0') and tonumber(token) <= now then
  redis.call('HSET', tokens, branch, token)
end
for _, entry in ipairs(redis.call('XRANGE', jobs, '-', '+')) do
  local job = cjson.decode(entry[2][2])
  -- Jobs of a branch follow each other, so behind the first that goes on all others do.
  if head < job.first + job.steps then break end
  redis.call('XDEL', jobs, entry[1])
  redis.call('DEL', attempts)
end
return head
