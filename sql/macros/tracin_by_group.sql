-- grain: one row per (query, sequence, parameter group): what the group adds to TracIn over a run's checkpoints
-- not of incomplete runs, unless `relation` names the rows of one; normalise: unit (cosine of the groups together), local (sum of their cosines), none; weights: mean, learning_rate
create or replace macro tracin_by_group(
    run,
    parameter_groups := ['all'],
    normalise := 'unit',
    weights := 'mean',
    scaled := false,
    first_step := 1,
    last_step := 2147483647,
    relation := 'checkpoint_influences'
) as table
with chosen as (
    select
        query_id,
        sequence_id,
        checkpoint,
        learning_rate,
        parameter_group,
        case when scaled then scaled_dot else dot end as product,
        case when scaled then scaled_query_norm else query_norm end as query_norm,
        case when scaled then scaled_sequence_norm else sequence_norm end as sequence_norm
    from query_table(relation)
    where run_id = run
      and checkpoint between first_step and last_step
      and (
          list_contains(parameter_groups, 'all')
          or list_contains(parameter_groups, parameter_group)
          or (list_contains(parameter_groups, 'blocks') and parameter_group like 'block %')
      )
),
lengths as (
    select
        query_id,
        sequence_id,
        checkpoint,
        sqrt(sum(query_norm ** 2 order by parameter_group)) * sqrt(sum(sequence_norm ** 2 order by parameter_group))
            as length
    from chosen
    group by query_id, sequence_id, checkpoint
),
counted as (
    select count(distinct checkpoint) as n_checkpoints
    from chosen
),
shares as (
    select
        c.query_id,
        c.sequence_id,
        c.parameter_group,
        c.checkpoint,
        case
            when weights = 'mean' then 1.0 / n.n_checkpoints
            when weights = 'learning_rate' then coalesce(c.learning_rate, error('weights: a checkpoint of this run has no learning rate'))
            else error('weights: expected mean or learning_rate')
        end
        * case
            when c.product is null then error('scaled: a checkpoint of this run has no second moments')
            when normalise = 'none' then c.product
            -- a gradient of length zero points nowhere
            when normalise = 'unit' then coalesce(c.product / nullif(l.length, 0), 0)
            when normalise = 'local' then coalesce(c.product / nullif(c.query_norm * c.sequence_norm, 0), 0)
            else error('normalise: expected unit, local or none')
        end as share
    from chosen c
    join lengths l on l.query_id = c.query_id and l.sequence_id = c.sequence_id and l.checkpoint = c.checkpoint
    cross join counted n
)
select
    query_id,
    sequence_id,
    parameter_group,
    case when parameter_group like 'block %' then parameter_group[7:]::integer else -1 end as layer,
    sum(share order by checkpoint) as share
from shares
group by query_id, sequence_id, parameter_group
