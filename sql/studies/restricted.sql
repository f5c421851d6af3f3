-- grain: one row per (query, region, rank): a query's first sequences by region of the network, and what words they share
-- words are those of prompt and completion; `alone` says that no other third has the sequence among its first
select
    r.query_id,
    r.region,
    r.rank,
    r.sequence_id,
    r.influence,
    word_overlap(
        q.prompt || q.completion,
        substring(d.text, (s.start_char + 1)::bigint, (s.end_char - s.start_char)::bigint)
    ) as word_overlap,
    count(*) filter (where r.region <> 'all') over (partition by r.query_id, r.sequence_id) <= 1 as alone,
    substring(d.text, (s.start_char + 1)::bigint, least(s.end_char - s.start_char, 160)::bigint) as text
from restricted_influences(run := $run, k := $k) r
join queries q on q.query_id = r.query_id
join sequences s on s.sequence_id = r.sequence_id
join documents d on d.document_id = s.document_id
order by r.query_id, r.region, r.rank
