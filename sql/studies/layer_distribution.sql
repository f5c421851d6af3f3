-- grain: one row per (query, sequence, layer), of each query's k most influential sequences
select query_id, influence_rank, sequence_id, layer, influence, share, centre_of_mass
from layer_distribution(run := $run, k := $k)
order by centre_of_mass, query_id, influence_rank, layer
