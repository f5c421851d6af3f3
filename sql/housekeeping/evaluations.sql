-- grain: one row per (method, metric) of one run
select method, metric, value, ci_low, ci_high, n
from evaluations
where run_id = $run
order by metric, value desc, method
