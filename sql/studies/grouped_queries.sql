-- grain: one row per query of a run: its group, and what its k first sequences have in common with it
-- of a query that no sequence raised all is null but its group; top_share is that of its first 1 % of all scored sequences
with distribution as (
    select query_id, sequence_id, any_value(influence_rank) as rank, any_value(centre_of_mass) as centre_of_mass
    from layer_distribution(run := $run, k := $k)
    group by query_id, sequence_id
),
worded as (
    select
        t.query_id,
        t.centre_of_mass,
        word_overlap(
            q.prompt || q.completion,
            substring(d.text, (s.start_char + 1)::bigint, (s.end_char - s.start_char)::bigint)
        ) as word_overlap
    from distribution t
    join queries q on q.query_id = t.query_id
    join sequences s on s.sequence_id = t.sequence_id
    join documents d on d.document_id = s.document_id
),
found as (
    select
        query_id,
        count(*) as n_sequences,
        avg(centre_of_mass) as centre_of_mass,
        avg(word_overlap) as word_overlap
    from worded
    group by query_id
)
select
    s.query_id,
    coalesce(q.metadata ->> '$.group', 'no group') as query_group,
    f.n_sequences,
    f.centre_of_mass,
    f.word_overlap,
    s.top_share
from top_shares($run) s
join queries q on q.query_id = s.query_id
left join found f on f.query_id = s.query_id
order by query_group, q.submitted_at, s.query_id
