-- grain: one row per complete run, the latest first
select run_id
from runs
order by finished_at desc, run_id
