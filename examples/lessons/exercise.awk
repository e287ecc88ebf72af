# Makes a student's copy of a solution: leaves out what is between the comment "your turn: ..." and the comment "end".
/\/\* your turn/ { turn = 1; comment = 1 }
!turn || comment || /\/\* end \*\// { print }
comment && /\*\// { comment = 0; next }
turn && !comment && /\/\* end \*\// { turn = 0 }
