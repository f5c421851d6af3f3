-- grain: one row per (run, query, sequence, method)
-- not the layers: those are of the run's own method only
with own as (
    select query_id, sequence_id, $method as method, sum(influence order by module) as influence
    from run_layer_influences
    group by query_id, sequence_id
),
beside as (
    select query_id, sequence_id, method, sum(influence::double order by module) as influence
    from staged_scored
    where method <> $method
    group by query_id, sequence_id, method
),
lexical as (
    select query_id, sequence_id, filter as method, filter_score as influence
    from run_candidates
    where list_contains($filters, filter) and filter_score is not null
),
tracin as (
    select query_id, sequence_id, influence
    from tracin_scores(
        $run_id,
        parameter_groups := $parameter_groups,
        normalise := $normalise,
        weights := $weights,
        scaled := $scaled,
        first_step := $first_step,
        relation := 'run_checkpoint_influences'
    )
),
embedding as (
    select query_id, sequence_id, influence
    from embedding_scores($run_id, layers := $hidden_layers, relation := 'run_hidden_similarities')
),
trajectory as (
    select query_id, sequence_id, 'tracin' as method, influence
    from tracin
    where not exists (from own where method = 'tracin')
    union all
    select query_id, sequence_id, 'embedding' as method, influence
    from embedding
    union all
    select t.query_id, t.sequence_id, 'tracin+embedding' as method, (t.influence + e.influence) / 2 as influence
    from tracin t
    join embedding e on e.query_id = t.query_id and e.sequence_id = t.sequence_id
),
texts as (
    select query_id, sequence_id, method, influence
    from staged_texts
),
random as (
    select distinct
        query_id,
        sequence_id,
        'random' as method,
        md5_number_lower(query_id || ':' || sequence_id::varchar)::double / 18446744073709551616.0 as influence
    from run_candidates
    where list_contains($methods, 'random')
),
together as (
    select * from own
    union all select * from beside
    union all select * from lexical
    union all select * from trajectory where list_contains($methods, method)
    union all select * from texts
    union all select * from random
),
exact_pairs as (
    select distinct query_id, sequence_id
    from staged_exact_layers
),
filter_ranks as (
    select query_id, sequence_id, min(filter_rank) as filter_rank
    from run_candidates
    group by query_id, sequence_id
),
related as (
    select
        t.query_id,
        t.sequence_id,
        t.method,
        t.influence,
        case when list_contains($gradient_methods, t.method) then t.influence / $n_sequences end as influence_per_copy,
        case
            when t.method = $method then t.influence / sqrt(nullif(f.self_influence, 0))
            when t.method = 'identity' then t.influence / nullif(f.gradient_norm, 0)
        end as relative_influence,
        t.method = $method and e.sequence_id is not null as exact,
        r.filter_rank
    from together t
    left join self_influences f on f.factors_id = $factors_id and f.sequence_id = t.sequence_id
    left join exact_pairs e on e.query_id = t.query_id and e.sequence_id = t.sequence_id
    left join filter_ranks r on r.query_id = t.query_id and r.sequence_id = t.sequence_id
)
select
    $run_id as run_id,
    query_id,
    sequence_id,
    method,
    influence,
    influence_per_copy,
    relative_influence,
    exact,
    row_number() over (partition by query_id, method order by influence desc, sequence_id)::integer as influence_rank,
    filter_rank
from related
order by query_id, method, influence_rank
