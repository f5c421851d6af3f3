-- grain: one row per query that two runs share: how far their influences agree
create or replace macro compare_runs(a, b) as table
with one as (
    select i.* from influences i join runs r on r.run_id = i.run_id and r.method = i.method where i.run_id = a
),
two as (
    select i.* from influences i join runs r on r.run_id = i.run_id and r.method = i.method where i.run_id = b
),
shared as (
    select
        one.query_id,
        one.influence as influence_a,
        two.influence as influence_b,
        one.influence_rank as rank_a,
        two.influence_rank as rank_b,
        rank() over (partition by one.query_id order by one.influence) as order_a,
        rank() over (partition by one.query_id order by two.influence) as order_b
    from one
    join two on two.query_id = one.query_id and two.sequence_id = one.sequence_id
)
select
    query_id,
    count(*) as n_shared,
    corr(influence_a, influence_b) as pearson,
    corr(order_a, order_b) as spearman,
    count(*) filter (where rank_a <= 10 and rank_b <= 10) as shared_top_10
from shared
group by query_id
order by query_id
