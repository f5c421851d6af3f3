-- grain: one row per state that any query has
select state, count(*) as n
from query_states
group by state
order by state
