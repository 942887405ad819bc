-- The right to work on a branch's current job. Asked again with the same nonce, it gives the same answer.
local jobs, lease, attempts, heads, tokens, dead, news, store = unpack(KEYS)
local branch, worker, nonce, lease_ms, most, most_ahead, kept_s = unpack(ARGV)

if redis.call('EXISTS', store) == 0 then return {'unreconciled'} end
local first = redis.call('XRANGE', jobs, '-', '+', 'COUNT', 1)[1]
if not first then return {'empty'} end
if redis.call('HEXISTS', dead, branch) == 1 then return {'dead'} end

local job, head = first[2][2], redis.call('HGET', heads, branch) or '0'
local held = redis.call('HMGET', lease, 'worker', 'nonce', 'token', 'whole')
-- The claim came here before and its answer got lost.
if held[2] == nonce then return {'claimed', job, held[3], head} end
if held[1] and held[1] ~= worker then
  -- Longer than when it was given: the server's clock was set back. Its worker renews it, or it is dead.
  local whole = held[4] or lease_ms
  if redis.call('PTTL', lease) > tonumber(whole) then redis.call('PEXPIRE', lease, whole) end
  return {'held', held[1], tostring(redis.call('PTTL', lease))}
end
if tonumber(head) < cjson.decode(job).first then
  -- Steps before it are missing, so it would wait for ever. The coordinator enqueues what the head needs.
  redis.call('DEL', jobs, lease, attempts)
  redis.call('XADD', news, 'MAXLEN', '~', 1000, '*', 'fell', branch)
  redis.call('EXPIRE', news, kept_s)
  return {'ahead'}
end

-- Each claim counts until a step or a clean release takes it back: who dies can say nothing.
local count = redis.call('HINCRBY', attempts, 'count', 1)
redis.call('EXPIRE', attempts, kept_s)
if count > tonumber(most) then
  local error = redis.call('HGET', attempts, 'error') or 'its worker died each time, without a word'
  redis.call('HSET', dead, branch, cjson.encode({job = cjson.decode(job).id, error = error}))
  redis.call('EXPIRE', dead, kept_s)
  redis.call('DEL', lease)
  redis.call('XADD', news, 'MAXLEN', '~', 1000, '*', 'dead', branch)
  redis.call('EXPIRE', news, kept_s)
  return {'dead'}
end

-- Never below what was given out before, even if that was lost with the server: in microseconds, which are exact in a
-- double and too short for two claims, so tokens do not run ahead of the clock.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local newest = tonumber(redis.call('HGET', tokens, branch) or '0')
if newest > now + tonumber(most_ahead) then newest = 0 end -- nobody's clock is set back so far: it was made up
local token = string.format('%.0f', math.max(now, newest + 1))
redis.call('HSET', tokens, branch, token)
redis.call('DEL', lease)
redis.call('HSET', lease, 'worker', worker, 'nonce', nonce, 'token', token, 'job', cjson.decode(job).id)
redis.call('HSET', lease, 'whole', lease_ms)
redis.call('PEXPIRE', lease, lease_ms)
return {'claimed', job, token, head}
