-- grain: one row per (query, checkpoint) of a run: the probability of the answer, and whether it is the first
select query_id, checkpoint, probability, is_first, is_among_three
from query_outcomes
where run_id = $run
order by query_id, checkpoint
