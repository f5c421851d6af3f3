-- grain: one row per layer: where the head of one query's ranking acts
select layer, influence, share
from layer_profile($query, run := $run)
order by layer
