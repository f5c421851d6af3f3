-- grain: one row per query of a run with a uniform sample and a filter: what of the sample the filter had
-- not of complete runs only: reads one run's own parts, before anybody sees them; a sequence that any filter found is found
with kinds as (
    select
        bool_or(filter = 'uniform') as has_sample,
        -- A filter that found nothing leaves no row; no filter at all leaves every sequence under 'none'.
        bool_or(filter not in ('uniform', 'none')) or not bool_or(filter = 'none') as has_filter
    from run_candidates
),
marked as (
    select
        query_id,
        sequence_id,
        bool_or(filter = 'uniform') as sampled,
        bool_or(filter not in ('uniform', 'none')) as found
    from run_candidates
    group by query_id, sequence_id
),
own as (
    select m.query_id, m.sequence_id, m.sampled, m.found, i.influence
    from marked m
    join run_influences i on i.query_id = m.query_id and i.sequence_id = m.sequence_id
    where i.method = $method
),
placed as (
    select
        *,
        row_number() over (partition by query_id, sampled order by influence desc, sequence_id) as place_in_sample,
        row_number() over (partition by query_id, found order by influence desc, sequence_id) as place_in_filter,
        count(*) filter (where sampled) over (partition by query_id) as n_sample
    from own
),
thresholds as (
    select
        query_id,
        count(*) as n_found,
        max(influence) filter (where place_in_filter = $wanted) as threshold
    from placed
    where found
    group by query_id
)
select
    p.query_id,
    count(*) as n_sample,
    count(*) filter (where p.influence > 0) as n_positive,
    count(*) filter (where p.influence > 0 and p.place_in_sample <= greatest(ceil($share * p.n_sample), $least))
        as n_top,
    count(*) filter (
        where p.influence > 0 and p.place_in_sample <= greatest(ceil($share * p.n_sample), $least) and not p.found
    ) as n_missed,
    coalesce(any_value(t.n_found), 0) as n_found,
    any_value(t.threshold) as threshold,
    count(*) filter (where p.influence >= t.threshold) as n_reaching,
    list(p.influence order by p.place_in_sample) filter (where p.influence > 0 and p.place_in_sample <= $largest)
        as largest
from placed p
left join thresholds t on t.query_id = p.query_id
where p.sampled and (select has_sample and has_filter from kinds)
group by p.query_id
order by p.query_id
