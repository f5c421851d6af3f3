-- grain: one row per term of one corpus part
select term_id, count(*)::bigint as document_frequency
from part_postings
group by term_id
order by term_id
