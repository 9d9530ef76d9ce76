"""What people judge: blinded sheets of outputs, how many raters that takes, how far they agree, what they see."""
