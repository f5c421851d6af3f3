-- grain: one row per (method, query): what a training step on each of the method's first sequences taught, on average
select
    f.method,
    f.query_id,
    avg(t.probability_after - t.probability_before) as probability,
    avg(t.log_probability_change) as nats
from first_pairs f
join tail_patches t on t.run_id = $run and t.query_id = f.query_id and t.sequence_id = f.sequence_id
group by f.method, f.query_id
order by f.method, f.query_id
