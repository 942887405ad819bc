-- A worker gives a branch back. The attempt does not count unless it has an error to tell; with one, the job may die.
local lease, attempts, tokens, dead, news = unpack(KEYS)
local branch, token, job, error, most, kept_s = unpack(ARGV)
if redis.call('HGET', tokens, branch) ~= token then return 'lost' end

-- The token is used up: a renewal that is on its way must not bring the lease back.
redis.call('HSET', tokens, branch, string.format('%.0f', tonumber(token) + 1))
local answer = 'released'
redis.call('DEL', lease)
if error == '' then
  if redis.call('HINCRBY', attempts, 'count', -1) <= 0 then redis.call('DEL', attempts) end
else
  redis.call('HSET', attempts, 'error', error)
  if tonumber(redis.call('HGET', attempts, 'count') or '1') >= tonumber(most) then
    redis.call('HSET', dead, branch, cjson.encode({job = job, error = error}))
    redis.call('EXPIRE', dead, kept_s)
    answer = 'dead'
  end
end
if redis.call('EXISTS', attempts) == 1 then redis.call('EXPIRE', attempts, kept_s) end
redis.call('XADD', news, 'MAXLEN', '~', 1000, '*', answer, branch)
redis.call('EXPIRE', news, kept_s)
return answer
