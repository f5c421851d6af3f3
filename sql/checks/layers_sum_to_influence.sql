-- offending rows: influences of the run's method that their modules do not sum to
with summed as (
    select query_id, sequence_id, sum(influence) as layers, sum(abs(influence)) as size
    from run_layer_influences
    group by query_id, sequence_id
)
select i.query_id, i.sequence_id, i.influence, s.layers
from run_influences i
join summed s using (query_id, sequence_id)
where i.method = $method and abs(s.layers - i.influence) > 1e-6 * s.size
