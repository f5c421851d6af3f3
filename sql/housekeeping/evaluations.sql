-- grain: one row per (method, metric) of one run
-- not every metric: those of slices and of a method's forms, in brackets, and those at other places than the tenth stay out
select method, metric, value, ci_low, ci_high, n
from evaluations
where run_id = $run
  and not contains(method || metric, '[')
  and (not contains(metric, '@') or metric like '%@10')
order by metric, value desc, method
