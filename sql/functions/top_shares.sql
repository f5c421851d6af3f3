-- grain: one row per query of a run: the part of the positive influence that the first 1 % of its scored sequences hold
create or replace macro top_shares(run) as table
select
    query_id,
    sum(influence) filter (where influence_rank <= ceil(0.01 * n)) / nullif(sum(influence), 0) as top_share
from positive_influences(run)
group by query_id
