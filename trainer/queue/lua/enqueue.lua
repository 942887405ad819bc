-- A job at the end of its branch's stream, once: not again when it is there or done.
local jobs, heads, news = unpack(KEYS)
local branch, id, job, last, kept_s = unpack(ARGV)
if tonumber(redis.call('HGET', heads, branch) or '-1') >= tonumber(last) then return 'done' end
for _, entry in ipairs(redis.call('XRANGE', jobs, '-', '+')) do
  if cjson.decode(entry[2][2]).id == id then
    if entry[2][2] == job then return 'there' else return 'conflict' end
  end
end
redis.call('XADD', jobs, '*', 'job', job)
redis.call('EXPIRE', jobs, kept_s)
redis.call('XADD', news, 'MAXLEN', '~', 1000, '*', 'enqueued', branch)
redis.call('EXPIRE', news, kept_s)
return 'enqueued'
