-- grain: one row per named sequence: where it begins, and its first 160 characters
select
    s.sequence_id,
    s.document_id,
    substring(d.text, (s.start_char + 1)::bigint, least(s.end_char - s.start_char, 160)::bigint) as text
from sequences s
join documents d on d.document_id = s.document_id
where list_contains($sequences, s.sequence_id)
order by s.sequence_id
