-- grain: at most one row: of the k largest positive influences of a query's uniform sample, those that no filter had
-- k is `share` of the sample, at least `least`; ci_low and ci_high are Wilson's 95 % interval (z = 1.96)
-- not of runs without a sample or without a filter; the tail and the scan budget are those stored with the run
create or replace macro filter_audit(query, run := 'latest', share := 0.01, least := 10) as table
with chosen as (
    select run_id, method
    from chosen_run(query, run)
),
marked as (
    select
        k.sequence_id,
        bool_or(k.filter = 'uniform') as sampled,
        bool_or(k.filter not in ('uniform', 'none')) as found
    from candidates k
    join chosen c on c.run_id = k.run_id
    where k.query_id = query
    group by k.sequence_id
),
placed as (
    select
        i.influence,
        m.found,
        row_number() over (order by i.influence desc, i.sequence_id) as place,
        count(*) over () as n
    from influences i
    join chosen c on c.run_id = i.run_id and c.method = i.method
    join marked m on m.sequence_id = i.sequence_id
    where i.query_id = query and m.sampled
),
counted as (
    select
        count(*) as n_top,
        count(*) filter (where not found) as n_missed,
        count(*) filter (where not found) / nullif(count(*), 0) as missed_share,
        1.959963984540054::double as z
    from placed
    where influence > 0 and place <= greatest(ceil(share * n), least)
),
estimated as (
    select
        *,
        (missed_share + z * z / (2 * n_top)) / (1 + z * z / n_top) as middle,
        z * sqrt(missed_share * (1 - missed_share) / n_top + z * z / (4 * n_top * n_top)) / (1 + z * z / n_top) as half
    from counted
)
select
    a.run_id,
    a.query_id,
    a.n_sample,
    e.n_top,
    e.n_missed,
    e.missed_share,
    case when e.n_top > 0 and e.n_missed = 0 then 0 else e.middle - e.half end as ci_low,
    case when e.n_top > 0 and e.n_missed = e.n_top then 1 else e.middle + e.half end as ci_high,
    a.tail_alpha,
    a.tail_n,
    a.tail_p,
    a.threshold,
    a.scan_budget,
    a.budget_low,
    a.budget_high,
    a.reason
from filter_audits a
join chosen c on c.run_id = a.run_id
cross join estimated e
where a.query_id = query
