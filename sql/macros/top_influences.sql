-- grain: one row per sequence: the k training sequences that most raised the completion's probability
-- by 'influence' or 'relative'; of the latest run that holds the query, or of the run named; of the run's own method, or of the method named
create or replace macro top_influences(query, k := 10, by := 'influence', run := 'latest', method := 'own') as table
with ranked as (
    select
        i.*,
        row_number() over (
            order by
                case when "by" = 'relative' then i.relative_influence else i.influence end desc nulls last,
                i.sequence_id
        ) as place
    from influences i
    join chosen_run(query, run) c on c.run_id = i.run_id
    where i.query_id = query
      and i.method = case when method = 'own' then c.method else method end
      and case when "by" in ('influence', 'relative') then true else error('by: expected influence or relative') end
)
select
    r.place::integer as rank,
    r.sequence_id,
    s.document_id,
    r.influence,
    r.relative_influence,
    r.influence_per_copy,
    r.exact,
    r.filter_rank,
    d.source,
    s.start_char,
    s.end_char,
    substring(d.text, (s.start_char + 1)::bigint, (s.end_char - s.start_char)::bigint) as text
from ranked r
left join sequences s on s.sequence_id = r.sequence_id
left join documents d on d.document_id = s.document_id
where r.place <= k
order by r.place
