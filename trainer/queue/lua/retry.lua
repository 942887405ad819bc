-- A dead job lives again, with all its attempts.
local attempts, dead, news = unpack(KEYS)
local branch, kept_s = unpack(ARGV)
if redis.call('HDEL', dead, branch) == 0 then return 'alive' end
redis.call('DEL', attempts)
redis.call('XADD', news, 'MAXLEN', '~', 1000, '*', 'retried', branch)
redis.call('EXPIRE', news, kept_s)
return 'retried'
