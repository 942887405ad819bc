-- A job at the end of its branch's stream, once: not again when it is there or done.
local jobs, heads, news = unpack(KEYS)
local branch, id, job, first, last, kept_s = unpack(ARGV)
local head = tonumber(redis.call('HGET', heads, branch) or '-1')
if head >= tonumber(last) then return 'done' end
local run = cjson.decode(job).run
local reached = math.max(head, 0) -- a branch that is not there yet begins at 0
for _, entry in ipairs(redis.call('XRANGE', jobs, '-', '+')) do
  local queued = cjson.decode(entry[2][2])
  if queued.id == id then
    if entry[2][2] == job then return 'there' else return 'conflict' end
  end
  -- Heads are known by branch alone: the steps of one run would be taken for the other's.
  if queued.run ~= run then return 'run ' .. queued.run end
  reached = queued.first + queued.steps
end
-- A gap would stay for ever, for jobs are only added at the end: the head fell after the coordinator had looked at it.
if tonumber(first) > reached then return 'ahead' end
redis.call('XADD', jobs, '*', 'job', job)
redis.call('EXPIRE', jobs, kept_s)
redis.call('XADD', news, 'MAXLEN', '~', 1000, '*', 'enqueued', branch)
redis.call('EXPIRE', news, kept_s)
return 'enqueued'
