-- grain: one row per method of a run, and whether it has influences relative to self-influence
select method, count(relative_influence) > 0 as has_relative
from influences
where run_id = $run
group by method
order by method
