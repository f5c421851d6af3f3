-- grain: one row per sequence: the k whose own gradient is largest under the factors: outliers, rare or mislabelled text
-- of the whole corpus only where headwater self-influence has run; by 'total' or 'token' (divided by the scored tokens);
-- of the factors named, or of those that most sequences have been measured under
create or replace macro largest_self_influences(k := 10, "by" := 'total', factors := 'fullest') as table
with fullest as (
    select factors_id
    from self_influences
    group by factors_id
    order by count(*) desc, factors_id
    limit 1
),
ranked as (
    select
        f.factors_id,
        f.sequence_id,
        f.self_influence,
        f.self_influence / greatest(s.n_tokens - 1, 1) as self_influence_per_token,
        f.gradient_norm,
        s.document_id,
        s.n_tokens,
        s.start_char,
        s.end_char,
        row_number() over (
            order by
                case when "by" = 'token' then f.self_influence / greatest(s.n_tokens - 1, 1) else f.self_influence end
                    desc,
                f.sequence_id
        ) as place
    from self_influences f
    join sequences s on s.sequence_id = f.sequence_id
    where f.factors_id = case when factors = 'fullest' then (select factors_id from fullest) else factors end
      and case when "by" in ('total', 'token') then true else error('by: expected total or token') end
)
select
    r.place::integer as rank,
    r.factors_id,
    r.sequence_id,
    r.document_id,
    r.self_influence,
    r.self_influence_per_token,
    r.gradient_norm,
    r.n_tokens,
    d.source,
    r.start_char,
    r.end_char,
    substring(d.text, (r.start_char + 1)::bigint, (r.end_char - r.start_char)::bigint) as text
from ranked r
left join documents d on d.document_id = r.document_id
where r.place <= k
order by r.place
