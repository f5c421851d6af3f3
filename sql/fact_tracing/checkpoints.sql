-- grain: one row per checkpoint that a run followed, with its learning rate and whether it left second moments
select checkpoint, any_value(learning_rate) as learning_rate, count(scaled_dot) > 0 as has_moments
from checkpoint_influences
where run_id = $run
group by checkpoint
order by checkpoint
