-- wrk script: POST the file named by BENCH_BODY, print one JSON line of what happened.
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = "application/json"
local extra = os.getenv("BENCH_HEADER")
if extra and extra ~= "" then
   local name, value = extra:match("^([^:]+): *(.*)$")
   wrk.headers[name] = value
end

done = function(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '\nBENCH {"requests":%d,"seconds":%.6f,"p50_us":%.1f,"p99_us":%.1f,"max_us":%.1f,' ..
      '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
      summary.requests, summary.duration / 1e6,
      latency:percentile(50), latency:percentile(99), latency.max,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
