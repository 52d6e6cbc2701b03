"""Operations on clusters: submission of jobs, doctor, planning, bandwidth."""
